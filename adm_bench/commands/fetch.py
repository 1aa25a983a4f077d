"""`adm-bench fetch`."""

import click

from adm_bench.commands.options import example


@click.command(
    epilog=example(
        "adm-bench fetch inception",
        "adm-bench fetch dinov2 --print-urls",
        "adm-bench fetch inception --from weights-inception-2015-12-05-6726825d.pth",
    )
)
@click.argument("name", metavar="NAME")
@click.option("--from", "source", metavar="FILE|URL", help="Take it from there.  [default: where it is published]")
@click.option("--print-urls", is_flag=True, help="Print what would be fetched and get nothing.")
def command(name: str, source: str | None, print_urls: bool) -> None:
    """Get weights that others published.

    NAME is inception (96 MB) or dinov2 (1.2 GB). Size and SHA-256 are checked before the file takes its place in
    $ADM_BENCH_HOME/weights (~/.cache/adm-bench/weights unless that is set). A download that broke off goes on there
    when the command is given again. No other command opens a network connection.
    """
    from adm_bench.weights_store import fetch, published

    known = published(name)
    if print_urls:
        click.echo(known.url)
        click.echo(f"licence {known.licence}", err=True)
        click.echo(f"sha256 {known.sha256}, {known.num_bytes:,} bytes, to {known.path}", err=True)
        return
    path = fetch(name, source)
    click.echo(f"{path}: weights {name!r}, {known.num_bytes:,} bytes, sha256 {known.sha256}, licence {known.licence}")
