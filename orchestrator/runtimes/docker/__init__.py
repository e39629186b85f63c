"""Engines as containers of a Docker Engine, or of what speaks its API.

runtime      starts containers and finds them again
handle       power over one
watcher      hears what happens to all of them, and looks where nothing is heard
place        the network that they live in, and how it is reached from here
body         what the Docker Engine is told to create: the policy of every container
here         what this machine has for a container, and sees of it
mounts       which files of this machine a container sees
pulling      images that are not here yet
logs         from a container's output to the engine's log file
streams      ends the reading of what comes line by line
connection   the API, called in threads, and its errors in our words
"""
