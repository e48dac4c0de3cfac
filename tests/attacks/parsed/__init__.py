"""What is parsed of strangers, attacked in the process of the tests: no command is started, and a case takes milliseconds."""
