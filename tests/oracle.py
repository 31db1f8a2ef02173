"""The paper's formula, written naively: recompute W z from captured inputs, draw noise for every
token."""

import torch


def naive_nfn(model, inputs, draws, baseline, modules):
    """{module name: mean over tokens of ||W z|| / ||W z~||} for one unpadded text.

    `||W z~||` comes from `draws` Gaussian vectors of exactly the norm of z, per token:
    their root mean square ("rms") or their mean ("gaussian"). All in float32.
    """
    captured = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: captured.__setitem__(
                name, args[0].detach().float().flatten(0, -2)
            )
        )
        for name in modules
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()

    generator = torch.Generator().manual_seed(123)
    scores = {}
    for name, tokens in captured.items():
        weight = model.get_submodule(name).weight.detach().float()
        ratios = []
        for z in tokens:
            noise = torch.randn(draws, len(z), generator=generator)
            noise = noise / noise.norm(dim=1, keepdim=True) * z.norm()
            norms = (noise @ weight.T).norm(dim=1)
            denominator = norms.square().mean().sqrt() if baseline == "rms" else norms.mean()
            ratios.append((weight @ z).norm() / denominator)
        scores[name] = torch.stack(ratios).mean().item()
    return scores
