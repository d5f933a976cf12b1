"""An algorithm from outside learns when to search: REINFORCE with a linear policy, numpy and Gymnasium only.

    python docs/examples/plug_in.py

The player may give up, search with the picture, search with words, or answer with a name that was found. Answering
blindly earns next to nothing; the price of a search is worth paying.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

EPISODES = 800
BATCH = 16
LEARNING_RATE = 1.0
WORLD = "synthetic:seed=3,entities=60"


def features(observation: dict[str, np.ndarray]) -> np.ndarray:
    """What the policy looks at: the limits left, the words of the question, a constant."""
    return np.concatenate([observation["counters"], observation["question"], [1.0]])


def probabilities(weights: np.ndarray, seen: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(K,) softmax over the actions that mean something."""
    scores = np.where(mask > 0, weights @ seen, -np.inf)
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def play(env: gymnasium.Env[Any, Any], weights: np.ndarray, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """One episode: its return and the gradient of its log-probability, (K, D)."""
    observation, info = env.reset()
    gradient, total, over = np.zeros_like(weights), 0.0, False
    while not over:
        seen = features(observation)
        chances = probabilities(weights, seen, info["action_mask"])
        action = int(rng.choice(len(chances), p=chances))
        gradient += np.outer((np.arange(len(chances)) == action) - chances, seen)
        observation, reward, terminated, truncated, info = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total, gradient


def learn(episodes: int = EPISODES, seed: int = 0) -> list[float]:
    """The returns of all episodes, in order."""
    # A number chosen is always well-formed, so no points are given for form.
    env = gymnasium.make("mmsearch_env:MMSearchDiscrete-v0", world=WORLD, format_weight=0.0)
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    weights = np.zeros((int(env.action_space.n), features(observation).size))  # type: ignore[attr-defined]
    returns: list[float] = []
    while len(returns) < episodes:
        totals, gradients = zip(*(play(env, weights, rng) for _ in range(BATCH)), strict=True)
        returns += totals
        advantages = (np.array(totals) - np.mean(totals)) / (np.std(totals) + 0.1)
        weights += LEARNING_RATE * np.einsum("b,bkd->kd", advantages, np.stack(gradients)) / BATCH
    env.close()
    return returns


if __name__ == "__main__":
    history = learn()
    fifth = len(history) // 5
    print(f"mean return, first {fifth} episodes: {np.mean(history[:fifth]):.2f}, last: {np.mean(history[-fifth:]):.2f}")
