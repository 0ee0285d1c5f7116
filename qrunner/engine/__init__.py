"""What drives a runner.

===============  ===========================================================================
module           its job
===============  ===========================================================================
``loop``         claim, dispose, fate, commit; hooks; a stop that is no error
``batch``        the same for a ``BatchRunner``: looks, then claims what a pair names
``disposal``     handlers, then the runner's own ``dispose``, awaited or in a thread
``verdict``      from a fate, or an exception, to one commit
``hooks``        ``periodic``, ``idle`` and ``cleanup``, which stop nothing
``trouble``      how long to wait when the disk is full
``suspects``     who may have killed its process, and so runs alone
===============  ===========================================================================
"""
