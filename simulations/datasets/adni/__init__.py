"""ADNI in the layout of Flex-MoE: reading it, its cohort phases as sites, and a generated twin."""
