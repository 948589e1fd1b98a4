"""``keel serve``: OpenAI's API over an alias's snapshot, and over the next one when it moves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.arguments import CampaignPath, Overrides, load


def add_commands(app: typer.Typer) -> None:
    """Add it to a command line."""
    app.command("serve")(serve)


def serve(
    campaign: CampaignPath,
    alias: Annotated[str, typer.Option(help="Whose snapshot is served.")] = "production",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Made when it is not there; STORE/serving/key.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Swap when the alias moves.")] = False,
    swap: Annotated[
        Literal["overlap", "restart"],
        typer.Option(help="The new server beside the old one, or after it: 503 in between."),
    ] = "overlap",
    model_name: Annotated[
        str | None, typer.Option(help="What clients ask for; the campaign's name.")
    ] = None,
    poll_s: Annotated[float, typer.Option(min=0.05, help="Between looks at the alias.")] = 2.0,
    drain_s: Annotated[
        float, typer.Option(min=0, help="For requests under way on a server that is to stop.")
    ] = 300.0,
    start_deadline_s: Annotated[
        float, typer.Option(min=1, help="For a server to be healthy.")
    ] = 600.0,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1.0, help="Of one server; 0.45 where two overlap, 0.9 elsewhere."
        ),
    ] = None,
    vllm: Annotated[
        list[str] | None,
        typer.Option(help="One more argument for vLLM: --vllm=--max-num-seqs=64. Repeatable."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Serve a verified snapshot with vLLM behind OpenAI's API until stopped."""
    config = load(campaign, overrides).config
    from launch.serving.serve import Options
    from launch.serving.serve import serve as serve_alias
    from launch.serving.swapper import SwapPolicy

    options = Options(
        alias=alias,
        host=host,
        port=port,
        name=model_name,
        key_file=api_key_file,
        pace=SwapPolicy(swap=swap, follow=follow, poll_s=poll_s, drain_s=drain_s),
        start_deadline_s=start_deadline_s,
        gpu_memory_utilization=gpu_memory_utilization,
        extra=vllm or (),
    )
    serve_alias(config, options, say=lambda text: typer.echo(text, err=True))
