"""Which operators a program gets, and, without a language model, the program itself."""
