"""What is wrong with this machine or installation, and what to do: looking apart from judging."""
