"""``backprop demo``: fine-tune the embedded model on the bundled rows and show its answers before and after."""

from __future__ import annotations

import click

from backprop.cli import follow
from backprop.cli.shared_options import json_and_verbose
from backprop.cli.train import setting_options
from backprop.core.settings import RunConfig
from backprop.demo import demo_config


@click.command
@setting_options("output_dir")
@json_and_verbose
def demo(output_dir: str | None, as_json: bool, verbose: bool) -> int:
    """Teach the small model to answer like an old sea captain, and see the difference.

    A minute or two on two CPU cores. The model is fetched once; from then on nothing needs a network.
    """
    config: RunConfig = demo_config(*([output_dir] if output_dir else []))
    return follow.run(config, "demo", as_json, verbose)
