"""The work of the commands of `optimum-cli slicegpt`: a module each, whose `run` takes the parsed arguments."""
