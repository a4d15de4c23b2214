"""Reinforcement learning with the reasoning cache: GRPO on groups that begin with summaries of earlier reasoning.

torchrun --nproc-per-node 2 recipes/rc.py --config recipes/configs/rc_demo.yaml
"""

import argparse

from qedmeg import device
from qedmeg.errors import run_command


def main() -> int:
    """Read the settings and train; the same command goes on where a run was stopped."""
    from qedmeg.config_rc import RCConfig
    from qedmeg.settings import describe, load_config

    parser = argparse.ArgumentParser(
        description="Reinforcement learning with the reasoning cache: the policy reasons and summarises in rounds, and "
        "is trained on rubric grades of what it proves from these states, and of what its summaries improve. It starts "
        "its engines, judges and rollout process, or uses the servers it is given. Run again, it goes on from the last "
        "checkpoint.",
        epilog="example:\n"
        "  torchrun --nproc-per-node 2 recipes/rc.py --config recipes/configs/rc_demo.yaml\n\n"
        "settings:\n" + describe(RCConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML file with the settings below")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that override the file's")
    arguments = parser.parse_intermixed_args()
    config = load_config(RCConfig, arguments.config, arguments.settings)

    device.prepare()
    from qedmeg.training.grpo import train

    return train(config)


if __name__ == "__main__":
    run_command(main)
