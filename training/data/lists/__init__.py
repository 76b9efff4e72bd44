"""Lists of public data sets, made from the folders that their makers publish: one file a data set."""
