"""Run the command line: one file a command, each with `ABOUT`, `arguments(parser)` and
`run(options, say)`."""
