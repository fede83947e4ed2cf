"""The tests of the command line's pieces, without processes."""
