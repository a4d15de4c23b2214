"""Reinforcement learning on rubric grades by NeMo-Aligner's trainers: PPO with a critic, or REINFORCE.

torchrun --nproc-per-node 2 recipes/ppo.py --config recipes/configs/ppo_demo.yaml parallel.tp=2
"""

import argparse

from qedmeg import device
from qedmeg.errors import run_command


def main() -> int:
    """Read the settings and train; the same command goes on where a run was stopped."""
    from qedmeg.config_rl import PPOConfig
    from qedmeg.settings import describe, load_config

    parser = argparse.ArgumentParser(
        description="Reinforcement learning on rubric grades by NeMo-Aligner's trainers: PPO with a critic, or "
        "REINFORCE. It starts its engines, judges and rollout process, or uses the servers it is given. Run again, it "
        "goes on from the last checkpoint.",
        epilog="examples:\n"
        "  torchrun --nproc-per-node 2 recipes/ppo.py --config recipes/configs/ppo_demo.yaml parallel.tp=2\n"
        "  torchrun --nproc-per-node 2 recipes/ppo.py --config recipes/configs/reinforce_demo.yaml\n\n"
        "settings:\n" + describe(PPOConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML file with the settings below")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that override the file's")
    arguments = parser.parse_intermixed_args()
    config = load_config(PPOConfig, arguments.config, arguments.settings)

    device.prepare()
    from qedmeg.training.ppo import train

    return train(config)


if __name__ == "__main__":
    run_command(main)
