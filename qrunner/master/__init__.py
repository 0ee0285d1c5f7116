"""The master, which keeps one process a slice.

===============  ===========================================================================
module           its job
===============  ===========================================================================
``serving``      the program: signals, reloads, the end
``plan``         which slices are this machine's, and what each of them depends on
``slot``         one process place: begins it, sees it die, begins it again later
``watch``        what others may know of a master and its processes
===============  ===========================================================================
"""
