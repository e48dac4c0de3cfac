"""What is read of strangers, attacked in the process of the tests: no command is started."""
