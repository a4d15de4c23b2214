"""Supervised fine-tuning on teacher proofs.

torchrun --nproc-per-node 2 recipes/sft.py --config recipes/configs/sft_demo.yaml parallel.tp=2
"""

import argparse

from qedmeg import device
from qedmeg.errors import run_command


def main() -> int:
    """Read the settings and train; the same command goes on where a run was stopped."""
    from qedmeg.config import SFTConfig
    from qedmeg.settings import describe, load_config

    parser = argparse.ArgumentParser(
        description="Supervised fine-tuning on teacher proofs. Run again, it goes on from the last checkpoint.",
        epilog="example:\n"
        "  torchrun --nproc-per-node 2 recipes/sft.py --config recipes/configs/sft_demo.yaml parallel.tp=2\n\n"
        "settings:\n" + describe(SFTConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML file with the settings below")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that override the file's")
    arguments = parser.parse_intermixed_args()
    config = load_config(SFTConfig, arguments.config, arguments.settings)

    device.prepare()
    from qedmeg.training.sft import train

    return train(config)


if __name__ == "__main__":
    run_command(main)
