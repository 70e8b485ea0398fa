"""One file per outside system, and its in-memory twin beside it where one contract suite holds both."""
