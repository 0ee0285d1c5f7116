"""Programs as other processes: started, watched, drained, and ended with all that they have started.

::

    runner ── warden ─┬─ keeper ── program ── whatever it starts
                      └─ keeper ── program

``warden`` is a process of its own, and imports nothing of ours; ``running`` is the runner's end of it. ``output`` keeps
what a program prints within bounds, ``finding`` says whether there is one, ``folders`` gives each run a place to work in, ``survivors`` ends what outlived its
runner.
"""
