"""FERD: fairness-enhanced data-free robustness distillation (arXiv 2509.20793) in torch.

Each module holds one idea of the paper and is imported by its own name, so that a pipeline stage
depends on exactly what it runs; this package imports nothing eagerly.
"""
