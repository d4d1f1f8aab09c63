"""Latency, memory and arithmetic of the engines that run a model, measured side by side.

`plan` says what to compare, `prepare` writes the files, `worker` runs one engine in a process of
its own, `compare` lets them take turns, `statistics` and `machine` judge what came out, `record`
keeps it. `peak`, `roofline` and `simulate` say what the machine, and another one, could do.
"""
