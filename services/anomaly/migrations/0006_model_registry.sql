-- What is kept of a training besides weights and manifest: scores of normal rows, where values lay, the reference attacks
-- and what the model finds of them, what speaks against it. Models of before have none.
ALTER TABLE model ADD COLUMN profile bytea;
