"""The command line: a command a module, every one of them thin."""
