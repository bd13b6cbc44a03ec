"""Read and write text for a user: settings of a command line, output and errors of commands."""
