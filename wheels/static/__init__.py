"""One static executable that is the whole program: CPython, the package and its Cython engine. See README.md."""
