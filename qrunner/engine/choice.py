"""Which engine drives which class of runner."""

from __future__ import annotations

import logging

from qrunner.config import RunnerConfig
from qrunner.engine.batch import BatchEngine
from qrunner.engine.door import DoorEngine
from qrunner.engine.driver import Driver
from qrunner.engine.loop import Engine
from qrunner.runner import BatchRunner, Door, Runner
from qrunner.site import Site


def driver_for(
    site: Site, config: RunnerConfig, slice: int, runner_class: type[Runner], *, log: logging.Logger
) -> Driver:
    """What a runner's class wants to be driven by."""
    if issubclass(runner_class, Door):
        return DoorEngine(site, config, slice, runner_class, log=log)
    return engine_for(site, config, slice, runner_class, log=log)


def engine_for(
    site: Site, config: RunnerConfig, slice: int, runner_class: type[Runner], *, log: logging.Logger
) -> Engine:
    """The engine of a runner that owns a queue."""
    kind = BatchEngine if issubclass(runner_class, BatchRunner) else Engine
    return kind(site, config, slice, runner_class, log=log)
