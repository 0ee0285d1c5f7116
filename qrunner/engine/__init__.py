"""What drives a runner.

===============  ===========================================================================
module           its job
===============  ===========================================================================
``driver``       a state with its reason, a run and a stop: what the process around sees of any of them
``loop``         claim, dispose, fate, commit; hooks; a stop that is no error
``batch``        the same for a ``BatchRunner``: looks, then claims what a pair names
``door``         the same for a door: no queue, no claim; what it takes is durable when it is taken
``choice``       which of them a class wants
``disposal``     handlers, then the runner's own ``dispose``, awaited or in a thread
``verdict``      from a fate, or an exception, to one commit
``committing``   a commit in the loop, or in a thread where it is slow
``hooks``        ``periodic``, ``idle`` and ``cleanup``, which stop nothing
``trouble``      how long to wait when the disk is full
``suspects``     who may have killed its process, and so runs alone
===============  ===========================================================================
"""
