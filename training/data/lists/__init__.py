"""Lists of public data sets, made from the folders as published, one module per kind of sound."""
