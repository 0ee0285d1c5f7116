"""What the benchmarks share: a place on the disk that is measured, peers that they start and stop themselves, and the
form of what they have found.

==============  ======================================================================================
module          what it has
==============  ======================================================================================
``sinks``       smtp-sink, and when its messages came
``peers``       a Postfix of the benchmark's own: configuration, queue and ports apart from the machine's
``sites``       a site of qrunner under its real master
``crowds``      queues with very many entries, and what processes cost
``hosts``       many SMTP hosts and a name server, some of which hang
``runners``     runners of a site, each in a process that says what it has cost
``fitting``     what things cost here, for the model; ``model``: a site on one machine, simulated
``synced``      a runner that syncs each outcome
``about``       what machine this is
``drawing``     the ratios as a picture; ``plotting``: the curves
``rounds``      ways measured in turns, their medians, and how they compare with the peer's
==============  ======================================================================================
"""
