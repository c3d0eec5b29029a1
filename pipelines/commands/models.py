"""`alfine models`."""

from __future__ import annotations

import click

from pipelines.modeling.base_models import CONVERSION_FORMAT, PACKAGED_MODELS
from pipelines.storage.cache import cache_folder


@click.command()
def models() -> None:
    """List the base models that need no model hub: the first use downloads a Python package.

    \b
    Example:
      alfine models
    """
    for model in PACKAGED_MODELS.values():
        is_unpacked = (cache_folder() / "models" / f"{model.name}-{CONVERSION_FORMAT}" / "config.json").exists()
        click.echo(f"{model.name}  {model.about}  [{'ready' if is_unpacked else 'unpacked on first use'}]")
    click.echo(
        "base_model also takes a model id of the Hub (owner/name) or a folder with config.json and .safetensors."
    )
