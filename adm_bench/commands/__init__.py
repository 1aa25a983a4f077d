"""One module a command, each with an attribute `command`."""
