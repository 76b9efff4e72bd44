"""Several runs together: the paper's tasks in one go, and what runs amount to side by side."""
