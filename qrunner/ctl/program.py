"""The verbs of ``qrunner-ctl``, each loaded when it is asked for.

``VERBS`` says where each lives, and its line in the help, so that neither the help nor a mistyped verb loads any.
``-c/--config`` may stand before the verb or after it.

Exit codes: 0 done, 1 could not or in part, 2 usage, 3 not running, 75 try again, 78 configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click

from qrunner.ctl.context import Settings, exit_code, say


class Verb(NamedTuple):
    """Where a verb's command is (``module:attribute``), and what it does in a few words."""

    target: str
    help: str


VERBS: Mapping[str, Verb] = {
    "init": Verb("qrunner.ctl.setup:init", "lay out a site"),
    "check": Verb("qrunner.ctl.setup:check", "everything that is wrong with the configuration"),
    "start": Verb("qrunner.ctl.processes:start", "start the master, return when every runner is up"),
    "stop": Verb("qrunner.ctl.processes:stop", "stop, and wait until everything has stopped"),
    "restart": Verb("qrunner.ctl.processes:restart", "stop, then start"),
    "reload": Verb("qrunner.ctl.processes:reload", "take up the changed configuration"),
    "reopen": Verb("qrunner.ctl.processes:reopen", "open the log files anew, after a rotation"),
    "run": Verb("qrunner.ctl.processes:run", "one runner in the foreground, without a master"),
    "status": Verb("qrunner.ctl.status:status", "master, runners, queues, hosts, problems"),
    "inject": Verb("qrunner.ctl.inject:inject", "put messages into a queue"),
    "list": Verb("qrunner.ctl.listing:list_", "entries, oldest due first"),
    "show": Verb("qrunner.ctl.listing:show", "one entry: envelope, headers, history"),
    "hold": Verb("qrunner.ctl.entries:hold", "set entries aside until they are released"),
    "release": Verb("qrunner.ctl.entries:release", "held entries back to where they came from"),
    "unshunt": Verb("qrunner.ctl.entries:unshunt", "shunted entries back to where they came from"),
    "requeue": Verb("qrunner.ctl.entries:requeue", "entries into a queue again, wherever they are"),
    "delete": Verb("qrunner.ctl.entries:delete", "end entries, for good"),
    "bounce": Verb("qrunner.ctl.bouncing:bounce", "end entries, each with a report to its sender"),
    "flush": Verb("qrunner.ctl.entries:flush", "make deferred entries due now"),
    "suspend": Verb("qrunner.ctl.suspending:suspend", "let a runner, queue, host or domain wait"),
    "resume": Verb("qrunner.ctl.suspending:resume", "let it go on"),
    "route": Verb("qrunner.ctl.route:route", "where mail for an address would go, and by which rule"),
    "slices": Verb("qrunner.ctl.listing:slices", "a runner's slices: range, share, owner, what waits"),
    "mta-config": Verb("qrunner.ctl.mta:mta_config", "the lines for an MTA, to paste"),
}


class Verbs(click.Group):
    """The group of all verbs; loads one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module, _, attribute = VERBS[name].target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        if not any(param.name == "config" for param in command.params):
            command.params.append(config_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = get_close_matches(name, VERBS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"there is no verb {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            code = exit_code(error)
            if code is None:
                raise
            say(str(error) or type(error).__name__)
            ctx.exit(code)


def _remember(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    settings = ctx.find_root().ensure_object(Settings)
    if value is not None:
        settings.config = value


def config_option() -> click.Option:
    """``-c``: of the program, and of every verb."""
    return click.Option(
        ["-c", "--config"],
        metavar="FILE",
        type=click.Path(path_type=Path),
        expose_value=False,
        is_eager=True,
        callback=_remember,
        help="the configuration; else $QRUNNER_CONFIG, ./etc/qrunner.toml (not for root), /etc/qrunner/qrunner.toml",
    )


program = Verbs(
    name="qrunner-ctl",
    help="Mail queues in a directory, drained by runners that each own a slice of the hash space.",
    params=[config_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    no_args_is_help=True,
)


def main() -> None:
    """Runs the program; ends the process."""
    program.main(prog_name="qrunner-ctl")
