"""The paper's settings on CIFAR-10, in Python: for whoever takes the library without ``params.yaml``.

To change some: ``SCHEDULE.model_copy(update={"rounds": 10, "warmup_rounds": 1})``. CIFAR-100 and
Tiny-ImageNet have batches of 512 and a student's learning rate of 0.2.
"""

from ferd.config import (
    Augmentation,
    Bottleneck,
    DistillationSettings,
    Method,
    NonRobust,
    Student,
    Synthesis,
    SynthesisWeights,
    ThreatModel,
    Utae,
)

THREAT_MODEL = ThreatModel(norm="linf", epsilon=8 / 255, step_size=2 / 255, steps=20)
AUGMENTATION = Augmentation(padding=4, flip=True)

# attacks on the student, as in the released code; the paper writes the teacher
FERD = Method(
    images="generator",
    sampler="margin",
    synthesis="fae",
    nonrobust=NonRobust(layer=-1, threshold_over="sample"),
    adversary="utae",
    utae=Utae(gamma=0.5, model="student"),
    student_loss="ikl",
)

SCHEDULE = DistillationSettings(
    precision="auto",
    rounds=220,
    warmup_rounds=20,
    batch_size=256,
    proportion_floor=0.0,
    utae_steps=10,
    synthesis=Synthesis(
        steps=200,
        latent_dim=100,
        generator_learning_rate=2e-3,
        latent_learning_rate=0.015,
        weights=SynthesisWeights(adv=1.0, bn=5.0, oh=1.0, uni=5.0),
        bottleneck=Bottleneck(threshold="max", steps=50, learning_rate=0.1, beta=0.3),
    ),
    student=Student(steps=400, learning_rate=0.1, weight_decay=5e-4, adversarial_weight=1 / 6),
    threads=2,
)
