"""Fine-tuning of an exported network on a small cohort, and what it is compared with."""
