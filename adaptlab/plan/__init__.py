"""What a training step needs on a pod, found by compiling it for one: memory, operations, communication, time."""
