"""The method: prompts, answers, token entropy, rewards, advantages, losses, and the two steps made of them."""
