mod adoption;
