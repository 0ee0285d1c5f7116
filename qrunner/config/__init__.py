"""The configuration file: TOML in, frozen values out, every error with its line before anything is started."""

from __future__ import annotations

from qrunner.config.model import (
    BalanceConfig,
    Config,
    HostConfig,
    Listen,
    RouteConfig,
    RuleConfig,
    RunnerConfig,
    SiteConfig,
    SliceConfig,
    WhenIdle,
    is_loopback,
)
from qrunner.config.problems import ConfigErrors, Problem
from qrunner.schedule import Retry

__all__ = [
    "BalanceConfig",
    "Config",
    "ConfigErrors",
    "HostConfig",
    "Listen",
    "Problem",
    "Retry",
    "RouteConfig",
    "RuleConfig",
    "RunnerConfig",
    "SiteConfig",
    "SliceConfig",
    "WhenIdle",
    "is_loopback",
]
