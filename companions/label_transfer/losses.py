"""What the networks learn from: least-squares adversaries and the four losses of the generators."""
import torch
import torch.nn.functional as F

from companions.label_transfer.networks import composite
from net.inputs import to_input

GREY = 0.299, 0.587, 0.114   # of red, green and blue


def jittered(pictures, contrast):
    """uint8 (B, 3, S, S) -> (B, 3, S, S) in [-1, 1], the contrast of each changed at random.

    contrast : most that the factor on the distance from the mean grey differs from 1
    """
    x = to_input(pictures, 'symmetric')
    grey = (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    factor = 1 + contrast * (2 * torch.rand_like(grey) - 1)
    return (grey + factor * (x - grey)).clamp(-1, 1)


def judged(discriminators, pictures, wanted):
    """Squared distance of all that discriminators say, of patches and of wholes, from what is wanted.

    pictures : list of (B, 3, S, S); wanted : list of 1 (real) or 0, one a batch
    """
    total = 0.0
    for network in discriminators:
        for logits in network(torch.cat(pictures)):
            for part, target in zip(logits.chunk(len(pictures)), wanted, strict=True):
                total = total + F.mse_loss(part, torch.full_like(part, target))
    return total


class Exchange:
    """One step's pictures on their way between diseased (a) and healthy (b), (B, 3, S, S) in [-1, 1] each.

    a2b, b2a : networks.Generator. Both see both kinds at once: of their own kind, to be translated, and of
    the other, which they should leave as it is.
    """

    def __init__(self, a2b, b2a, a, b):
        self.a2b, self.b2a, self.a, self.b = a2b, b2a, a, b
        count = len(a)
        from_a, from_b = a2b(torch.cat([a, b])), b2a(torch.cat([b, a]))
        self.fake_b, self.same_b = from_a.fake.split(count)
        self.fake_a, self.same_a = from_b.fake.split(count)
        self.recon_a, self.recon_b = from_a.recon[:count], from_b.recon[:count]
        self.composite_b = composite(a, self.fake_b, from_a.mask[:count])
        self.composite_a = composite(b, self.fake_a, from_b.mask[:count])
        self.logits = torch.cat([from_a.logits, from_b.logits])   # of the own kind, the other; twice

    def discriminators(self, of_a, of_b, composites=False):
        """{'D A': loss, 'D B': loss} of lists of discriminators of either kind.

        composites : whether they learn that composites are no real pictures either
        """
        shown = {'D A': (of_a, self.a, self.fake_a, self.composite_a),
                 'D B': (of_b, self.b, self.fake_b, self.composite_b)}
        found = {}
        for name, (networks, real, *drawn) in shown.items():
            fakes = [one.detach() for one in drawn[:1 + composites]]
            found[name] = judged(networks, [real, *fakes], [1.0] + [0.0] * len(fakes))
        return found

    def generators(self, of_a, of_b):
        """The generators' losses, without weights: {'adv', 'cycle', 'identity', 'recon', 'cam': loss}."""
        a, b, count = self.a, self.b, len(self.a)
        sides = self.logits.split(count)
        wanted = [torch.full_like(side, target) for side, target in zip(sides, (1.0, 0.0) * 2, strict=True)]
        return {
            'adv': (judged(of_a, [self.fake_a, self.composite_a], [1.0, 1.0])
                    + judged(of_b, [self.fake_b, self.composite_b], [1.0, 1.0])),
            'cycle': (F.l1_loss(self.b2a(self.fake_b).fake, a) + F.l1_loss(self.a2b(self.fake_a).fake, b)),
            'identity': F.l1_loss(self.same_a, a) + F.l1_loss(self.same_b, b),
            'recon': F.l1_loss(self.recon_a, a) + F.l1_loss(self.recon_b, b),
            'cam': sum(map(F.binary_cross_entropy_with_logits, sides, wanted))}
