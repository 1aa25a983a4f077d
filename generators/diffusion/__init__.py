"""The mathematics that every diffusion model here shares: schedules, process, losses, samplers, guidance."""
