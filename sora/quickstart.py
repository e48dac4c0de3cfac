"""Everything at once."""
EXAMPLES = ("sora quickstart", "sora quickstart scale=toy", "sora quickstart output=/tmp/q")


def main(config):
    print(config)


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("quickstart"))
