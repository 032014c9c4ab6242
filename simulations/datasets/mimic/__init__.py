"""MIMIC-IV, MIMIC-CXR-JPG and MIMIC-IV-Note in MedFuse's extraction: readers, pairing, sites, and a generated twin."""
