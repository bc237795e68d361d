"""What rows are read from, a format a module. `registry` knows which file is of which."""
