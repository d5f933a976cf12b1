"""An algorithm from outside learns when to search: REINFORCE with a linear policy, numpy and Gymnasium only.

    python docs/examples/plug_in.py

The player may give up, search with the picture, search with words, or answer with a name that was found. Answering
blindly earns next to nothing; the price of a search is worth paying.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

EPISODES = 1500
LEARNING_RATE = 0.2
ENTROPY_WEIGHT = 0.1
WORLD = "synthetic:seed=3,entities=60"


def features(observation: dict[str, np.ndarray]) -> np.ndarray:
    """What the policy looks at: the limits left, the words of the question, a constant."""
    return np.concatenate([observation["counters"], observation["question"], [1.0]])


def probabilities(weights: np.ndarray, seen: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(K,) softmax over the actions that mean something."""
    scores = np.where(mask > 0, weights @ seen, -np.inf)
    powers: np.ndarray = np.exp(scores - scores.max())
    chances: np.ndarray = powers / powers.sum()
    return chances


def play(env: gymnasium.Env[Any, Any], weights: np.ndarray, rng: np.random.Generator) -> tuple[float, Any, Any]:
    """One episode: its return, and the (K, D) gradients of its log-probability and of its entropy."""
    observation, info = env.reset()
    total, over, by_choice, by_entropy = 0.0, False, np.zeros_like(weights), np.zeros_like(weights)
    while not over:
        seen = features(observation)
        chances = probabilities(weights, seen, info["action_mask"])
        action = int(rng.choice(len(chances), p=chances))
        surprise = -np.log(np.maximum(chances, 1e-12))
        by_choice += np.outer((np.arange(len(chances)) == action) - chances, seen)
        by_entropy += np.outer(chances * (surprise - chances @ surprise), seen)
        observation, reward, terminated, truncated, info = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total, by_choice, by_entropy


def learn(episodes: int = EPISODES, seed: int = 0) -> list[float]:
    """The returns of all episodes, in order."""
    # A number chosen is always well-formed, so no points are given for form.
    env = gymnasium.make("mmsearch_env:MMSearchDiscrete-v0", world=WORLD, format_weight=0.0)
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    weights = np.zeros((info["action_mask"].size, features(observation).size))
    returns: list[float] = []
    for _ in range(episodes):
        total, by_choice, by_entropy = play(env, weights, rng)
        returns.append(total)
        advantage = (total - np.mean(returns[-50:])) / (np.std(returns[-50:]) + 0.1)
        weights += LEARNING_RATE * (advantage * by_choice + ENTROPY_WEIGHT * by_entropy)
    env.close()
    return returns


if __name__ == "__main__":
    history = learn()
    first, last = np.mean(history[:50]), np.mean(history[-300:])
    print(f"mean return, first 50 episodes: {first:.2f}, last 300: {last:.2f}")
