"""Settings that tests of several kinds give an algorithm."""

PPO_OFF = {  # what projects that call it PPO differ in, as the paper has it
    "kl": "reward",
    "kl_estimator": "k1",
    "kl_target": None,
    "kl_horizon": None,
    "scale_scores": "none",
    "gae_lambda_critic": None,
    "reward_clip": None,
    "whiten_rewards": False,
    "dual_clip": None,
    "entropy_coef": 0.0,
    "critic": "separate",
    "critic_init": "auto",
    "critic_warmup": 0,
}
