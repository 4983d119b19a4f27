"""What the commands of `optimum-cli slicegpt` do: a module each, whose `run` takes the parsed arguments."""
