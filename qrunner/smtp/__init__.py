"""The SMTP wing: handing mail to hosts.

From the wire upwards: ``reply`` (what a host said, and what it means for a recipient), ``wire`` (what may be
said to one), ``channel`` (the contract of a connection), ``client`` (a real one, on aiosmtplib), ``session`` (one
entry over a connection), ``health`` and ``board`` (what all processes of the machine know of a host), ``living``
(which hosts stand behind a queue), ``berth`` and ``pool`` (connections kept, counted, lent out). Where each recipient
has hosts of its own: ``resolver`` (questions to the DNS), ``mx`` (a domain's hosts), ``mxboard`` and ``mxpool`` (the
same for hosts without number), ``lanes`` (how much one destination may have at once), ``direct`` (one entry, domain by
domain) and ``parts`` (what became of each). ``sink`` plays the host in tests; ``sinkserver`` puts it behind a port.
"""
