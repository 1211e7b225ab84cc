"""What the interactive loop and the local page say, in English and Portuguese."""

import locale
import os

NOT_TAUGHT = "nothing in the catalogue resembles this: the model was not taught such a product"
SAID = {
    "en": {
        "begin": "(/help: what can be typed; sair, quit or Ctrl-D to leave)",
        "ask": "\nTitle or question> ",
        "help": """Type a title or a question. Commands:
  /before            the last one again, by the model before training and by the trained one
  /again             another answer to the last one
  /sources [K]       list products that the answer can be checked against; without K on and off
  /temp X            how daring: 0 always the likeliest word, 0.7 calm, 1 as learned
  /candidates N      tries at each answer, of which the truest is kept
  /adapter [NAME]    the adapters; or go on with another one, by its number, run or folder
  /save FILE         all answers so far, as JSONL
  /stats             the model, and how fast it writes
  sair, quit, Ctrl-D leave; Ctrl-C stops an answer""",
        "unknown": "{0} is no command. /help lists them.",
        "unknown, near": "{0} is no command; did you mean {1}? /help lists them.",
        "nothing": "There is no answer yet: type a title.",
        "stopped": "\n(stopped; Ctrl-C again or Ctrl-D leaves)",
        "before": "before: ",
        "after": "after:  ",
        "number": "{0} takes a number {1}, as in {0} {2}.",
        "greedy": "Answers are the likeliest ones now, always the same. /temp 0.8 draws others.",
        "temp": "Temperature {0}.",
        "candidates": "Tries at each answer: {0}.",
        "no judge": "There is no catalogue to judge several tries by.",
        "adapter": "Now with {0}.",
        "no adapters": "This model has no adapters: start with --adapter FOLDER.",
        "file": "/save takes the name of a new file, as in /save answers.jsonl.",
        "there": "{0} is there already: name another.",
        "saved": "Answers saved in {1}: {0}.",
        "sources": "Sources: the nearest products, up to {0}.",
        "sources off": "Sources: off.",
        "no source": "This answer has no source: nothing in the catalogue matches.",
        "matched": "matched",
        "grounded": "(grounded on {0}: {1})",
        "too long": "No answer: this is longer than the {0:,} tokens that the model sees.",
        "stats": "{0}: {1:,} parameters, {2} on {3}. Answers: {4}, {5:.1f} a minute; the last took {6:.1f} s. "
        "Temperature {7}, tries {8}.",
        "unsupported": "(nothing supports: {0})",
        "not taught": f"({NOT_TAUGHT})",
    },
    "pt": {
        "begin": "(/help: o que se pode digitar; sair, quit ou Ctrl-D para sair)",
        "ask": "\nTítulo ou pergunta> ",
        "help": """Digite um título ou uma pergunta. Comandos:
  /before            o último de novo, pelo modelo antes do treino e pelo treinado
  /again             outra resposta ao último
  /sources [K]       lista produtos com que conferir a resposta; sem K liga e desliga
  /temp X            ousadia: 0 sempre a palavra mais provável, 0.7 calma, 1 como aprendida
  /candidates N      tentativas para cada resposta; fica a mais verdadeira
  /adapter [NOME]    os adaptadores; ou continua com outro, por número, treino ou pasta
  /save ARQUIVO      todas as respostas até aqui, em JSONL
  /stats             o modelo, e quão rápido escreve
  sair, quit, Ctrl-D saem; Ctrl-C para uma resposta""",
        "unknown": "{0} não é um comando. /help mostra quais há.",
        "unknown, near": "{0} não é um comando; seria {1}? /help mostra quais há.",
        "nothing": "Ainda não há resposta: digite um título.",
        "stopped": "\n(parado; Ctrl-C de novo ou Ctrl-D sai)",
        "before": "antes:  ",
        "after": "depois: ",
        "number": "{0} pede um número {1}, como em {0} {2}.",
        "greedy": "As respostas agora são as mais prováveis, sempre iguais. /temp 0.8 sorteia outras.",
        "temp": "Temperatura {0}.",
        "candidates": "Tentativas para cada resposta: {0}.",
        "no judge": "Não há catálogo para julgar várias tentativas.",
        "adapter": "Agora com {0}.",
        "no adapters": "Este modelo não tem adaptadores: comece com --adapter PASTA.",
        "file": "/save pede o nome de um arquivo novo, como em /save respostas.jsonl.",
        "there": "{0} já existe: dê outro nome.",
        "saved": "Respostas salvas em {1}: {0}.",
        "sources": "Fontes: os produtos mais próximos, até {0}.",
        "sources off": "Fontes: desligadas.",
        "no source": "Esta resposta não tem fonte: nada no catálogo combina.",
        "matched": "em comum",
        "grounded": "(com base em {0}: {1})",
        "too long": "Sem resposta: isto é mais longo que os {0:,} tokens que o modelo vê.",
        "stats": "{0}: {1:,} parâmetros, {2} em {3}. Respostas: {4}, {5:.1f} por minuto; a última levou {6:.1f} s. "
        "Temperatura {7}, tentativas {8}.",
        "unsupported": "(nada sustenta: {0})",
        "not taught": "(nada no catálogo se parece com isto: o modelo não aprendeu tal produto)",
    },
}

PAGE = {
    "en": {
        "title": "Title",
        "attributes": "Attributes, one a line: colour=blue",
        "candidates": "Candidates",
        "temperature": "Temperature",
        "write": "Write",
        "with before": "beside it, the model before training",
        "about": "A marked word states what neither title nor attributes say: check it. What you accept or edit "
        "is kept in corrections.jsonl in the folder of the run. Give that file to data_prep.py beside your "
        "catalogue: the next training learns from it, and it stands in the place of what the catalogue said of "
        "that product. Of one product the last text counts.",
        "after": "After training",
        "before": "Before",
        "sources": "Sources",
        "none yet": "None yet.",
        "matched": "matched",
        "not taught": "Nothing in the catalogue resembles this: the model was not taught such a product.",
        "table": "A table",
        "table of titles": "A table of titles",
        "describe": "Describe and download",
        "accept": "Accept",
        "edit": "Edit",
        "reject": "Reject",
        "your text": "Your text",
        "working": "Working ...",
        "change": "Change the text, then Edit again to keep it.",
        "unsupported": "Nothing supports: {0}. Check it; once more keeps it as it is.",
        "saved": "Saved.",
        "choose": "Choose a table first.",
        "downloaded": "Downloaded.",
        "gone": "No answer: has the program in the terminal ended?",
        "no title": "There is no title.",
        "no text": "There is no text to keep.",
        "no table": "This table cannot be read; it needs a column called title, nome or titulo.",
        "no base": "The model before training cannot be had; the terminal says why.",
        "no success": "This did not work; the terminal says why.",
        "no more": "The program is being stopped.",
        "too long": "{0} is longer than {1:,} characters.",
        "too long for the model": "This is longer than the model sees: shorten it.",
        "too large": "This is too long.",
        "too many titles": "A table of 1 to {0} titles, please; longer ones: generate.py --titles.",
        "too many requests": "Too many requests are waiting; try again in a moment.",
        "not understood": "{0}",
    },
    "pt": {
        "title": "Título",
        "attributes": "Atributos, um por linha: cor=azul",
        "candidates": "Tentativas",
        "temperature": "Temperatura",
        "write": "Escrever",
        "with before": "ao lado, o modelo antes do treino",
        "about": "Uma palavra marcada afirma o que nem o título nem os atributos dizem: confira. O que você "
        "aceita ou edita fica em corrections.jsonl, na pasta do treino. Dê esse arquivo ao data_prep.py junto com "
        "o seu catálogo: o próximo treino aprende com ele, e ele fica no lugar do que o catálogo dizia do produto. "
        "De cada produto vale o último texto.",
        "after": "Depois do treino",
        "before": "Antes",
        "sources": "Fontes",
        "none yet": "Ainda nenhuma.",
        "matched": "em comum",
        "not taught": "Nada no catálogo se parece com isto: o modelo não aprendeu tal produto.",
        "table": "Uma tabela",
        "table of titles": "Uma tabela de títulos",
        "describe": "Descrever e baixar",
        "accept": "Aceitar",
        "edit": "Editar",
        "reject": "Rejeitar",
        "your text": "Seu texto",
        "working": "Trabalhando ...",
        "change": "Mude o texto e clique de novo em Editar para guardá-lo.",
        "unsupported": "Nada sustenta: {0}. Confira; mais um clique guarda assim mesmo.",
        "saved": "Guardado.",
        "choose": "Escolha primeiro uma tabela.",
        "downloaded": "Baixado.",
        "gone": "Sem resposta: o programa no terminal terminou?",
        "no title": "Falta o título.",
        "no text": "Não há texto para guardar.",
        "no table": "Não foi possível ler esta tabela; ela precisa de uma coluna chamada title, nome ou titulo.",
        "no base": "O modelo antes do treino não está disponível; o terminal diz por quê.",
        "no success": "Não deu certo; o terminal diz por quê.",
        "no more": "O programa está sendo encerrado.",
        "too long": "{0} tem mais de {1:,} caracteres.",
        "too long for the model": "Isto é mais longo do que o modelo vê: encurte.",
        "too large": "Isto é longo demais.",
        "too many titles": "Uma tabela de 1 a {0} títulos, por favor; as maiores: generate.py --titles.",
        "too many requests": "Há pedidos demais na fila; tente de novo daqui a pouco.",
        "not understood": "{0}",
    },
}


def language() -> str:
    """`pt` where the system speaks Portuguese, else `en`."""
    named = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), None)
    return "pt" if (named or locale.getlocale()[0] or "").lower().startswith(("pt", "portug")) else "en"


def language_of(accepted: str) -> str:
    """The same of a browser, by the first of its Accept-Language."""
    return "pt" if accepted.strip().lower().startswith("pt") else "en"
