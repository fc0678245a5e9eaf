"""The program inside the container: one chunk in, shards out.

Touches: the attempt's folder; the share through `walk`, in a child process only.

Two processes. The first (`guard`) never touches the share: it starts the second, watches it, kills
it, and writes the result. The second (`walker`) reads the share with many threads and may hang for
ever without taking the chunk with it.
"""
