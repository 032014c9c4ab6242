"""A folder of patients, hospital's or reference set's: manifest, files, tensors, standardisation."""
