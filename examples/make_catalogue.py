"""Make the invented catalogue that Vitrine trains on when no other data is there.

    python examples/make_catalogue.py            # writes catalogue.json.gz and facts.json.gz beside this script
    python examples/make_catalogue.py --language pt --output_dir pt        # only the products that are in Portuguese

The catalogue has the schema of LF-Amazon's `trn.json.gz`, two languages, and the faults of scraped shop pages in a few
per cent of its lines, so that data preparation has something to do. Every fact of a title (brand, kind, colour,
material, size, quantity) stands in the description too, and no other fact does: where the title has no brand, the
description names none. Of some products the shop has columns: they hold every fact, and the title as many of them as
the seller cared to type. Most brands occur once only: a model can answer for a new product only if it has learned to
copy from what it is given. `facts.json.gz` lists those facts, so that this can be counted.

Products, brands and shops are invented; any likeness to real ones is chance.
"""

import argparse
import gzip
import html.entities
import json
import random
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# --------------------------------------------------------------------------------------------------------- word lists


class Kind(NamedTuple):
    """One kind of product, and what can truthfully be said of it.

    Alternatives are separated by `|`. A kind with no `quantities` is sold singly. `uses` follow "for" (or "para"),
    `tails` follow the size, `features` follow "It" or "Each one" (so the verb stays singular), `closings` stand alone
    and fit one piece as well as a set.
    """

    one: str
    many: str
    gender: str  # "m" or "f" in Portuguese, "" in English
    coloured: bool
    materials: str
    measure: str  # a key of MEASURES
    sizes: str
    quantities: str
    uses: str
    tails: str
    features: str
    closings: str


# fmt: off
ENGLISH_KINDS = (
    # kitchen
    Kind("mug", "mugs", "", True, "ceramic|porcelain|stoneware|enamel",
         "holds", "250 ml|300 ml|350 ml|400 ml", "set of 2|set of 4|set of 6",
         "the first coffee of the day|long mornings at a desk|tea with a friend|cocoa on a cold evening",
         "enough for a good cup of tea|so nobody has to ask for more|a good size for tea or coffee",
         "has a wide handle that stays cool|feels good in the hand|keeps tea warm for half an hour",
         "Coffee tastes better from a mug you like.|A small gift that says \"good morning\" every day."),
    Kind("cutting board", "cutting boards", "", False, "bamboo|oak|beech|walnut",
         "measures", "30 x 20 cm|35 x 25 cm|40 x 30 cm|45 x 30 cm", "set of 2|set of 3",
         "chopping herbs and vegetables|bread and cheese at the table|a busy family kitchen|everyday cooking",
         "with room for a whole loaf|and slips easily behind the kettle|a size that suits most worktops",
         "has a groove that catches the juice|stays flat and doesn't slip|has a hole for hanging on a hook",
         "Rinse, dry and put away: that's all the care needed.|Good knives stay sharp for longer."),
    Kind("storage jar", "storage jars", "", True, "glass|ceramic|stoneware",
         "holds", "500 ml|750 ml|1 litre|2 litres", "set of 3|set of 4|set of 6",
         "rice, pasta and beans|coffee, tea and sugar|homemade biscuits|a tidy pantry",
         "a handy size for the shelf|and takes up half the space of a bag|and opens with one hand",
         "has a lid that closes with a soft click|keeps food dry and fresh|is easy to open and to fill",
         "Food stays crisp and the cupboard stays tidy.|Add a label and you'll always know what's inside."),
    Kind("salt & pepper mill", "salt & pepper mills", "", True, "beech|walnut|acrylic|stainless steel",
         "tall", "15 cm|18 cm|20 cm|25 cm", "",
         "seasoning at the stove|Sunday lunch with the family|freshly ground pepper on pasta|a well-laid table",
         "a good height for the table|and passes easily from hand to hand|so it's never lost among the plates",
         "grinds coarse or fine with a turn of the top|is easy to fill and doesn't spill|turns smoothly and quietly",
         "Fresh pepper makes all the difference, doesn't it?|Salt, pepper and no mess on the table."),
    # home
    Kind("cushion cover", "cushion covers", "", True, "cotton|linen|velvet|wool",
         "measures", "40 x 40 cm|45 x 45 cm|50 x 50 cm|60 x 40 cm", "set of 2|set of 4",
         "a sofa that needs a new look|a reading chair by the window|a quiet corner of the bedroom|lazy afternoons",
         "and slips on in half a minute|a size that fits most cushions|and hugs the cushion without a crease",
         "closes with a hidden zip|feels soft against the cheek|keeps its shape after washing",
         "A new cover is the easiest way to freshen up a room.|The seams are strong and don't come undone."),
    Kind("table lamp", "table lamps", "", True, "brass|ceramic|glass|steel",
         "tall", "30 cm|38 cm|45 cm|52 cm", "set of 2",
         "reading in bed|a small bedside table|a warm corner of the hall|late evenings at a desk",
         "so the light falls right on the page|a good height for reading|and needs very little room",
         "gives a warm, even light|has a switch that's easy to find in the dark|stands firmly and doesn't wobble",
         "The light is soft and doesn't tire the eyes.|Switch on, sit down and the room feels like home."),
    # office
    Kind("notebook", "notebooks", "", True, "leather|cork|felt",
         "has", "96 pages|120 pages|160 pages|200 pages", "pack of 2|pack of 3|pack of 5",
         "notes, lists and small drawings|travel diaries|long meetings and short ideas|lessons and lectures",
         "enough for a season of notes|with paper that ink doesn't bleed through|with space for every \"one day\" plan",
         "lies flat when open|has thick paper that's a pleasure to write on|has a ribbon to mark the page",
         "A good idea is safe once it's on paper.|A fine gift for anyone who still writes by hand."),
    # pets
    Kind("dog bed", "dog beds", "", True, "cotton|fleece|corduroy|canvas",
         "measures", "60 x 45 cm|70 x 50 cm|80 x 60 cm|100 x 70 cm", "",
         "long naps after a walk|puppies and older dogs alike|a sunny spot by the door|tired paws",
         "with room to stretch and turn|a size that's easy to move around|and fits neatly beside a sofa",
         "has soft edges to rest a chin on|has a cover that comes off for washing|doesn't slide on a smooth floor",
         "Your dog won't want the sofa any more.|Hair comes off with a quick shake."),
    # sport
    Kind("yoga mat", "yoga mats", "", True, "cork|natural rubber|jute|cotton",
         "measures", "173 x 61 cm|180 x 60 cm|183 x 66 cm", "",
         "a calm start to the day|stretching at home|slow and gentle exercise|classes and quiet practice",
         "with room for every pose|and rolls up small|a good size for home or class",
         "grips the floor and doesn't slip|is soft on the knees|rolls up small and ties with a strap",
         "Roll it out, breathe in and begin.|It's light to carry and easy to store."),
    Kind("water bottle", "water bottles", "", True, "stainless steel|aluminium|glass",
         "holds", "500 ml|600 ml|750 ml|1 litre", "pack of 2|pack of 4",
         "long walks and bike rides|the gym, the office and the train|school bags and picnics|hot days outdoors",
         "enough for a whole afternoon|and fits most cup holders|so there's no need to stop for a drink",
         "has a lid that doesn't leak|opens and closes with one hand|keeps water fresh all day",
         "Fill up at home and you won't need to buy water on the way.|Fresh water is always within reach."),
    # toys
    Kind("jigsaw puzzle", "jigsaw puzzles", "", False, "cardboard|wooden",
         "has", "100 pieces|300 pieces|500 pieces|1000 pieces", "",
         "rainy Sundays|a quiet evening at the table|children and grown-ups alike|the whole family",
         "all with a clean, snug fit|every one with its own shape|so there's always one more to find",
         "shows a bright picture full of small details|comes in a sturdy box|holds together and doesn't fall apart",
         "Start at the edges and take your time.|When it's done, it's almost a pity to take it apart."),
    Kind("teddy bear", "teddy bears", "", True, "cotton|plush|wool",
         "tall", "25 cm|30 cm|35 cm|40 cm", "",
         "bedtime hugs|small hands and big adventures|a new baby's room|story time",
         "just right for a small pair of arms|small enough for a suitcase|and sits up all by itself",
         "has friendly eyes and a gentle smile|is softly filled and doesn't lose its shape|sits up all by itself",
         "It listens to every secret and doesn't tell.|A friend for many years of play."),
    # tools and garden
    Kind("tool box", "tool boxes", "", True, "steel|aluminium|plastic",
         "long", "35 cm|40 cm|45 cm|50 cm", "",
         "small repairs at home|the garage or the boot of a car|weekend projects|every screw and spanner",
         "with space for hammers and pliers|and fits under a workbench|so there's room for longer tools too",
         "has a tray that lifts out for small parts|shuts firmly and doesn't rattle|has a firm, comfortable handle",
         "Everything has its place, and you'll find it at once.|It's sturdy enough for years of repairs."),
    Kind("watering can", "watering cans", "", True, "galvanised steel|copper|plastic",
         "holds", "1 litre|1.5 litres|2 litres|5 litres", "",
         "pots on the balcony|seedlings and herbs|thirsty house plants|a small vegetable patch",
         "enough for a row of pots|and isn't hard to lift when full|so there are fewer trips to the tap",
         "pours gently and doesn't drip|has a long spout that reaches between the leaves|is well balanced in the hand",
         "The plants will thank you by growing.|It's pretty enough to leave out by the door."),
    # clothing
    Kind("T-shirt", "T-shirts", "", True, "cotton|organic cotton|linen",
         "comes", "size S|size M|size L|size XL", "pack of 2|pack of 3",
         "everyday wear|warm summer days|weekends and holidays|wearing under a jacket",
         "with a relaxed fit|and doesn't ride up when you move|cut to sit well on the shoulders",
         "has a round neck that keeps its shape|feels light on the skin|is cut straight and isn't tight",
         "It's easy to wear with jeans, shorts and almost everything else.|Simple clothes are often the best ones."),
    Kind("scarf", "scarves", "", True, "wool|cotton|silk|cashmere",
         "long", "150 cm|160 cm|180 cm|200 cm", "",
         "cold mornings|autumn walks|the last days of winter|windy evenings out",
         "enough to wrap around twice|and folds up small|so there are many ways to tie it",
         "is warm but doesn't scratch|is light on the shoulders|drapes softly under a coat",
         "A simple gift that says \"keep warm\".|Wrap up, step out and don't mind the wind."),
)

PORTUGUESE_KINDS = (
    # cozinha
    Kind("caneca", "canecas", "f", True, "cerâmica|porcelana|vidro|aço inox",
         "holds", "250 ml|300 ml|350 ml|400 ml", "conjunto com 2|kit com 4|jogo com 6",
         "o primeiro café do dia|o chá da tarde|as pausas no trabalho|um chocolate quente no inverno",
         "na medida certa para um bom café|e ainda sobra espaço para o leite|sem precisar encher de novo",
         "tem uma alça larga e confortável|encaixa bem na mão|tem uma borda lisa que não pinga",
         "O café fica mais gostoso em uma boa caneca.|Um presente simples que agrada a todos."),
    Kind("tábua de corte", "tábuas de corte", "f", False, "bambu|teca|eucalipto",
         "measures", "30 x 20 cm|35 x 25 cm|40 x 30 cm|45 x 30 cm", "kit com 2|conjunto com 3",
         "picar legumes e temperos|o churrasco de domingo|servir pães e queijos|a cozinha de todos os dias",
         "com espaço para um pão inteiro|e cabe em qualquer bancada|um tamanho fácil de guardar",
         "tem uma canaleta que segura o caldo|fica firme e não escorrega|tem um furo para pendurar",
         "Depois do uso, basta lavar e secar bem.|As facas continuam afiadas por mais tempo."),
    Kind("pote", "potes", "m", True, "vidro|cerâmica|plástico",
         "holds", "500 ml|750 ml|1 litro|2 litros", "kit com 3|jogo com 4|conjunto com 6",
         "guardar arroz e feijão|organizar a despensa|guardar biscoitos caseiros|o café, o açúcar e a farinha",
         "um tamanho prático para a prateleira|um bom volume para o dia a dia|e ocupa pouco espaço",
         "tem uma tampa que fecha bem|conserva os alimentos secos e frescos|é fácil de abrir e de encher",
         "Tudo fica seco, fresco e no lugar certo.|A cozinha fica mais bonita e organizada."),
    # casa
    Kind("luminária de mesa", "luminárias de mesa", "f", True, "metal|cerâmica|vidro|bambu",
         "tall", "30 cm|38 cm|45 cm|52 cm", "kit com 2",
         "ler antes de dormir|a mesa de cabeceira|um canto aconchegante da sala|estudar à noite",
         "na altura certa para a leitura|e ocupa pouco espaço|para iluminar bem a página",
         "dá uma luz suave e uniforme|tem um botão fácil de achar no escuro|fica firme e não balança",
         "A luz é agradável e não cansa os olhos.|Basta acender para o quarto ficar mais acolhedor."),
    Kind("manta", "mantas", "f", True, "algodão|lã|microfibra|tricô",
         "measures", "120 x 150 cm|130 x 170 cm|150 x 200 cm|180 x 220 cm", "",
         "as noites frias|o sofá da sala|ver um filme em boa companhia|os cochilos de domingo",
         "com espaço de sobra para se enrolar|e cobre bem o sofá|e é fácil de dobrar e guardar",
         "esquenta sem pesar|é macia e não pinica|não solta fiapos",
         "É só puxar a manta e relaxar.|Um presente que diz \"fique mais um pouco\"."),
    # escritório
    Kind("caderno", "cadernos", "m", True, "couro|cortiça|tecido",
         "has", "96 páginas|120 páginas|160 páginas|200 páginas", "kit com 2|pacote com 3|pacote com 5",
         "as anotações, as listas e os desenhos|o diário de viagem|as aulas e as reuniões|guardar boas ideias",
         "com papel que não deixa a tinta passar|com espaço para muitos planos|para cada \"um dia eu faço\"",
         "abre por inteiro sobre a mesa|tem papel grosso e gostoso de escrever|tem uma fita para marcar a página",
         "Escrever à mão ainda é um prazer.|Um bom presente para quem gosta de escrever."),
    # animais
    Kind("caminha para cachorro", "caminhas para cachorro", "f", True, "algodão|pelúcia|lona|veludo",
         "measures", "60 x 45 cm|70 x 50 cm|80 x 60 cm|100 x 70 cm", "",
         "as sonecas depois do passeio|filhotes e cães idosos|um cantinho ao sol|o descanso do seu melhor amigo",
         "com espaço para se esticar|um tamanho fácil de levar|e cabe ao lado do sofá",
         "tem bordas macias para apoiar a cabeça|tem uma capa que sai para lavar|não desliza no piso liso",
         "Seu cachorro vai deixar o sofá em paz.|Os pelos saem com uma boa sacudida."),
    # esporte
    Kind("tapete de ioga", "tapetes de ioga", "m", True, "cortiça|borracha natural|juta|algodão",
         "measures", "173 x 61 cm|180 x 60 cm|183 x 66 cm", "",
         "começar o dia com calma|alongar o corpo em casa|as aulas de ioga|a prática em casa ou no parque",
         "com espaço para todas as posturas|e ocupa pouco espaço enrolado|um bom tamanho para casa ou academia",
         "adere bem ao chão e não escorrega|é macio para os joelhos|fica bem plano no chão",
         "É só estender, respirar e começar.|É prático para levar e fácil de guardar."),
    Kind("garrafa", "garrafas", "f", True, "aço inox|alumínio|vidro",
         "holds", "500 ml|600 ml|750 ml|1 litro", "kit com 2|kit com 4",
         "as caminhadas e os passeios de bicicleta|a academia e o escritório|a mochila da escola|os dias quentes",
         "água para a tarde inteira|e cabe na maioria das mochilas|o bastante para um longo passeio",
         "tem uma tampa que não vaza|abre e fecha com uma só mão|conserva a água fresca o dia todo",
         "Beber água ao longo do dia fica mais fácil.|Assim há sempre água fresca por perto."),
    # brinquedos
    Kind("quebra-cabeça", "quebra-cabeças", "m", False, "papelão|madeira",
         "has", "100 peças|300 peças|500 peças|1000 peças", "",
         "as tardes de chuva|uma noite tranquila em família|crianças e adultos|as férias em casa",
         "todas com encaixe firme|cada uma com seu próprio formato|e sempre há mais uma para encontrar",
         "mostra uma imagem alegre e cheia de detalhes|vem em uma caixa firme|encaixa bem e não solta",
         "Comece pelas bordas e aproveite o tempo.|No fim, dá até pena de desmontar."),
    # ferramentas e jardim
    Kind("caixa de ferramentas", "caixas de ferramentas", "f", True, "aço|alumínio|plástico",
         "long", "35 cm|40 cm|45 cm|50 cm", "",
         "os pequenos reparos em casa|a garagem ou o porta-malas|projetos de fim de semana|guardar chaves e parafusos",
         "com lugar para martelos e alicates|e cabe debaixo da bancada|com espaço para ferramentas mais longas",
         "tem uma bandeja para peças pequenas|fecha bem e não abre no caminho|tem uma alça firme e confortável",
         "Cada ferramenta fica no seu lugar, sempre à mão.|É boa companhia para muitos anos de trabalho."),
    Kind("regador", "regadores", "m", True, "aço galvanizado|cobre|plástico",
         "holds", "1 litro|1,5 litro|2 litros|5 litros", "",
         "os vasos da varanda|regar mudas e temperos|as plantas da sala|a horta de casa",
         "o bastante para uma fileira de vasos|e é fácil de carregar|para regar tudo sem pressa",
         "despeja a água com suavidade|tem um bico longo que alcança as raízes|tem uma alça confortável",
         "As plantas agradecem e crescem mais bonitas.|Fica bonito até quando está à vista na varanda."),
    # roupas
    Kind("camiseta", "camisetas", "f", True, "algodão|linho|algodão orgânico",
         "comes", "tamanho P|tamanho M|tamanho G|tamanho GG", "kit com 2|kit com 3",
         "o dia a dia|os dias quentes de verão|o fim de semana|usar por baixo da jaqueta",
         "com caimento solto|e não sobe com o movimento|com corte reto nos ombros",
         "tem gola redonda que não deforma|é leve e gostosa na pele|tem corte reto e confortável",
         "É fácil combinar com jeans, bermuda e quase tudo.|Roupa simples quase sempre é a melhor escolha."),
    Kind("mochila", "mochilas", "f", True, "lona|náilon|couro|sarja",
         "holds", "15 litros|20 litros|25 litros|30 litros", "",
         "a escola e a faculdade|o trabalho e a academia|as viagens curtas|as trilhas do fim de semana",
         "com espaço para livros e casaco|com lugar para o que importa|sem pesar nos ombros",
         "tem alças macias que não machucam|tem um bolso escondido para a carteira|tem zíper forte que não emperra",
         "Tudo fica organizado, do caderno ao lanche.|É boa companhia para muitas viagens."),
)

# Each sentence is true of the material in every kind that offers it: ceramic may be a mug or a lamp.
CARE = {
    "ceramic": "Wipe the ceramic with a damp cloth and it keeps its shine.|The smooth ceramic doesn't hold stains.",
    "porcelain": "Fine porcelain is easy to clean.|The porcelain is thin at the rim and strong everywhere else.",
    "stoneware": "Stoneware is sturdy and doesn't chip easily.|Wash the stoneware with a soft sponge.",
    "enamel": "The enamel is light, tough and easy to rinse.|Use a soft sponge and the enamel won't scratch.",
    "bamboo": "Wipe the bamboo clean and let it dry standing up.|Bamboo is light, hard and grows back fast.",
    "oak": "A little oil now and then keeps the oak beautiful.|Oak grows more handsome with age.",
    "beech": "Beech is hard, pale and pleasant to touch.|Rub the beech with oil when it looks dry.",
    "walnut": "Walnut has a rich, dark grain.|Keep the walnut dry and oil it now and then.",
    "glass": "The glass is thick and easy to clean.|Polish the glass with a dry cloth and it looks new again.",
    "acrylic": "The acrylic is light and doesn't break easily.|Clean the acrylic with a soft, damp cloth.",
    "stainless steel": "Stainless steel doesn't rust and asks for little care."
                       "|Dry the stainless steel with a cloth and it stays bright.",
    "cotton": "The cotton is soft and dries in half a day.|Wash the cotton cold and let it dry in the shade.",
    "linen": "Linen gets softer with every wash.|Iron the linen while it's still damp.",
    "velvet": "Brush the velvet gently and it looks new again.|The velvet catches the light and feels warm.",
    "wool": "Wash the wool by hand in cool water.|The wool is warm, light and doesn't crease.",
    "brass": "Polish the brass with a dry cloth and it glows again.|The brass grows warmer in tone over the years.",
    "steel": "The steel is strong and wipes clean in half a minute.|Keep the steel dry and it won't rust.",
    "leather": "The leather gets more beautiful with use.|Rub a little cream into the leather when it looks dry.",
    "cork": "Cork is light, warm and pleasant to touch.|Wipe the cork with a damp cloth and let it dry.",
    "felt": "The felt is thick and soft to the touch.|Brush the felt lightly to keep it clean.",
    "fleece": "Fleece dries fast and doesn't lose its softness.|Wash the fleece cold and let it dry in the air.",
    "corduroy": "Corduroy is soft to lie on and hard to wear out.|Brush the corduroy to lift out hair.",
    "canvas": "The canvas is tough and doesn't tear.|Scrub the canvas with soap and warm water.",
    "natural rubber": "Natural rubber grips well, even under damp feet.|Keep the natural rubber out of strong sun.",
    "jute": "Jute has a firm, natural feel underfoot.|Shake the jute out and wipe it with a dry cloth.",
    "aluminium": "Aluminium is light to carry and doesn't rust.|Wipe the aluminium with a soft cloth after use.",
    "cardboard": "The cardboard is thick and doesn't bend.|Keep the cardboard dry and it lasts for years.",
    "wooden": "The wooden pieces are smooth, with no rough edges.|The wooden pieces feel warm in the hand.",
    "plush": "The plush is thick and doesn't shed.|Clean the plush with a damp cloth.",
    "plastic": "The plastic is light and doesn't crack in the cold.|Rinse the plastic with water and it's clean again.",
    "galvanised steel": "Galvanised steel can stay outdoors in any weather.|The galvanised steel is made to last.",
    "copper": "Copper darkens slowly and doesn't mind the rain.|Polish the copper with a dry cloth and it glows again.",
    "organic cotton": "Organic cotton is gentle on the skin.|Wash the organic cotton cold.",
    "silk": "Wash the silk by hand and don't wring it.|Silk feels cool and light on the skin.",
    "cashmere": "Cashmere is warm without being heavy.|Wash the cashmere by hand and dry it flat.",
    "cerâmica": "A cerâmica é fácil de limpar com um pano úmido.|A cerâmica tem acabamento liso e não mancha.",
    "porcelana": "A porcelana é fina, resistente e não guarda cheiro.|Lave a porcelana com uma esponja macia.",
    "vidro": "O vidro é grosso e fácil de limpar.|Passe um pano seco e o vidro volta a brilhar.",
    "aço inox": "O aço inox não enferruja e pede pouco cuidado.|Seque o aço inox com um pano e ele continua brilhando.",
    "bambu": "O bambu é leve, firme e fácil de limpar.|Passe um pano úmido e deixe o bambu secar bem.",
    "teca": "Um pouco de óleo mantém a teca sempre bonita.|A teca é firme e resiste bem à água.",
    "eucalipto": "O eucalipto é forte e dura muitos anos.|Passe óleo no eucalipto quando ele parecer seco.",
    "plástico": "O plástico é leve e não quebra com facilidade.|Lave o plástico com água e sabão neutro.",
    "metal": "O metal é firme e fácil de limpar.|Passe um pano seco no metal de vez em quando.",
    "algodão": "O algodão é macio e fácil de lavar.|Lave o algodão com água fria e seque à sombra.",
    "lã": "Lave a lã à mão, com água fria.|A lã esquenta muito e pesa pouco.",
    "microfibra": "A microfibra seca rápido e não amassa.|Lave a microfibra com água fria.",
    "tricô": "O tricô tem pontos firmes que não desfiam.|Seque o tricô na horizontal para não deformar.",
    "couro": "O couro fica mais bonito com o uso.|Um pouco de hidratante mantém o couro macio.",
    "cortiça": "A cortiça é leve e agradável ao toque.|Limpe a cortiça com um pano úmido.",
    "tecido": "O tecido é resistente e gostoso ao toque.|Limpe o tecido com uma escova macia.",
    "pelúcia": "A pelúcia é fofa e fácil de limpar.|Lave a pelúcia com água fria e sabão neutro.",
    "lona": "A lona é forte e não rasga.|Escove a lona com água e sabão neutro.",
    "veludo": "Escove o veludo de leve e ele volta a brilhar.|O veludo é macio e gostoso ao toque.",
    "borracha natural": "A borracha natural adere bem, mesmo com os pés úmidos."
                        "|Guarde a borracha natural longe do sol forte.",
    "juta": "A juta tem um toque firme e natural.|Sacuda a juta e passe um pano seco.",
    "alumínio": "O alumínio é leve e não enferruja.|Limpe o alumínio com um pano macio.",
    "papelão": "O papelão é grosso e não entorta.|Mantenha o papelão seco e ele dura muitos anos.",
    "madeira": "A madeira é lisa, sem farpas.|A madeira é agradável ao toque.",
    "aço": "O aço é forte e fácil de limpar.|Mantenha o aço seco para não enferrujar.",
    "aço galvanizado": "O aço galvanizado resiste à chuva e ao sol.|O aço galvanizado é feito para durar.",
    "cobre": "O cobre escurece devagar e fica ainda mais bonito.|Um pano seco devolve o brilho ao cobre.",
    "linho": "O linho fica mais macio a cada lavagem.|Passe o linho ainda úmido para alisar bem.",
    "algodão orgânico": "O algodão orgânico é gentil com a pele.|Lave o algodão orgânico com água fria.",
    "náilon": "O náilon é leve e seca rápido.|Limpe o náilon com um pano úmido.",
    "sarja": "A sarja é firme e não desbota.|Lave a sarja à mão, com água fria.",
}
# Sold in their own colour: nobody offers a blue oak board.
UNCOLOURED = {"beech", "walnut", "brass", "cork", "jute", "copper", "bambu", "cortiça", "juta", "cobre"}

ENGLISH_COLOURS = ("black|white|grey|blue|red|green|yellow|orange|pink|purple|brown|beige|cream|ivory|turquoise|mustard"
                   "|navy blue|sky blue|olive green|mint green|dark red")
# Those named after a thing (rosa, vinho) and those with a hyphen never change; the others agree with the noun.
PORTUGUESE_COLOURS = ("preto|branco|vermelho|amarelo|roxo|azul|verde|marrom|cinza|rosa|laranja|creme"
                      "|turquesa|terracota|lavanda|vinho|mostarda|grafite|azul-marinho|verde-oliva")
AGREEING = {"azul": "azuis", "verde": "verdes", "marrom": "marrons"}

MEASURES = {
    "en": {"holds": "{It} holds {size}|{It} has room for {size}",
           "measures": "{It} measures {size}|{It} is {size}",
           "tall": "{It} stands {size} tall|{It} is {size} high",
           "long": "{It} is {size} long|{It} measures {size}",
           "has": "{It} has {size}",
           "comes": "{It} comes in {size}|{It} is a {size}"},
    "pt": {"holds": "{It} tem capacidade de {size}|{It} comporta {size}",
           "measures": "{It} mede {size}|{It} tem {size}",
           "tall": "{It} tem {size} de altura|{It} mede {size} de altura",
           "long": "{It} tem {size} de comprimento|{It} mede {size} de comprimento",
           "has": "{It} tem {size}",
           "comes": "{It} vem no {size}|{It} é do {size}"},
}
# {o} is the Portuguese article and also the ending of a participle: a caneca ... feita, os cadernos ... feitos.
# A Portuguese brand stands in apposition ("a caneca Velmora", "da marca Velmora"), since it has no gender of its own.
OPENINGS = {
    "en": {"one": "This {noun} from {brand} is made for {use}."
                  "|Meet the {brand} {noun}, a simple choice for {use}."
                  "|Here is {a_noun} by {brand}, ready for {use}."
                  "|{brand} makes this {noun} for {use}."
                  "|The {brand} {noun} is a good match for {use}."
                  "|Looking for {a_noun}? This one from {brand} is made for {use}."
                  "|For {use}, {brand} offers {a_noun} that's built to last.",
           "many": "These {noun} from {brand} are made for {use}."
                   "|Meet the {brand} {noun}, a simple choice for {use}."
                   "|{brand} makes these {noun} for {use}."
                   "|The {brand} {noun} are a good match for {use}.",
           "set": "This {quantity} {noun} from {brand} is made for {use}."
                  "|Here is {a_quantity} {noun} by {brand}, ready for {use}."
                  "|{brand} offers this {quantity} {noun} for {use}."},
    "pt": {"one": "Conheça {o} {noun} {brand}, feit{o} para {use}."
                  "|Est{e} {noun} da marca {brand} foi feit{o} para {use}."
                  "|A marca {brand} criou est{e} {noun} para {use}."
                  "|{O} {noun} {brand} é perfeit{o} para {use}."
                  "|Chegou {o} {noun} {brand}, ideal para {use}."
                  "|Procura {um} {noun}? Est{e}, da marca {brand}, foi feit{o} para {use}."
                  "|Para {use}, a marca {brand} oferece {um} {noun} que dura muito.",
           "many": "Conheça {o} {noun} {brand}, feit{o} para {use}."
                   "|Est{e} {noun} da marca {brand} foram feit{o} para {use}."
                   "|A marca {brand} criou est{e} {noun} para {use}."
                   "|{O} {noun} {brand} são perfeit{o} para {use}.",
           "set": "Este {quantity} {noun} da marca {brand} foi feito para {use}."
                  "|Conheça o {quantity} {noun} {brand}, ideal para {use}."
                  "|A marca {brand} oferece um {quantity} {noun} para {use}."},
}
# The same for a product without a brand.
PLAIN_OPENINGS = {
    "en": {"one": "This {noun} is made for {use}.|Here is {a_noun}, ready for {use}."
                  "|Meet this {noun}, a simple choice for {use}.|The {noun} is a good match for {use}."
                  "|Looking for {a_noun}? This one is made for {use}."
                  "|For {use}, here is {a_noun} that's built to last.",
           "many": "These {noun} are made for {use}.|Meet these {noun}, a simple choice for {use}."
                   "|The {noun} are a good match for {use}.",
           "set": "This {quantity} {noun} is made for {use}.|Here is {a_quantity} {noun}, ready for {use}."},
    "pt": {"one": "Est{e} {noun} foi feit{o} para {use}.|Conheça est{e} {noun}, feit{o} para {use}."
                  "|{O} {noun} é perfeit{o} para {use}.|Chegou {o} {noun}, ideal para {use}."
                  "|Procura {um} {noun}? Est{e} foi feit{o} para {use}.|Para {use}, temos {um} {noun} que dura muito.",
           "many": "Est{e} {noun} foram feit{o} para {use}.|Conheça est{e} {noun}, feit{o} para {use}."
                   "|{O} {noun} são perfeit{o} para {use}.",
           "set": "Este {quantity} {noun} foi feito para {use}.|Conheça o {quantity} {noun}, ideal para {use}."},
}
QUANTITIES = {
    "en": "They come as {a_quantity}, for half the pleasure is in sharing."
          "|You get {a_quantity}, wrapped with care in a sturdy box."
          "|They are sold as {a_quantity}, an easy gift to choose.",
    "pt": "A embalagem traz um {quantity}, ótimo para presentear."
          "|Você recebe um {quantity}, bem embalado e pronto para usar."
          "|A venda é feita em {quantity}, para usar ou dividir.",
}
TITLES = {
    "en": "{brand} {noun}, {rest}|{brand} {kind} - {look}, {rest}|{noun} by {brand}, {rest}|{brand} {noun} ({rest})",
    "pt": "{noun} {brand}, {rest}|{kind} {brand} - {look}, {rest}|{noun} da Marca {brand}, {rest}"
          "|{noun} {brand} ({rest})",
}
SET_TITLES = {"en": "{quantity} {noun} by {brand}, {size}", "pt": "{quantity} {noun} {brand}, {size}"}
PLAIN_TITLES = "{noun}, {rest}|{kind} - {look}, {rest}|{noun} ({rest})"
QUESTION_TITLES = {"en": "Looking for {title}?|Need a gift? {title}", "pt": "Procurando {title}?|Que tal {title}?"}
# Shares of the titles, as sellers in a hurry write them, and of the products whose facts stand in columns.
WITHOUT_BRAND, IN_SMALL_LETTERS, AS_QUESTION, IN_COLUMNS = 0.15, 0.1, 0.05, 0.25

STARTS = ("Al Ar Ba Bel Bri Ca Cal Da Dol El Fa Fen Fi Ga Gal Hal Il Jo Ka Kel Ki La Lor Lu Ma Mel Mi Na Nor Ol Or "
          "Pa Pel Ra Ro Sa Sel So Ta Tel Ti Va Vel Vi Wel Ya Za Zel")
MIDDLES = "ba bri da di fe ga la le li lo lu ma me mi mo na ne ni no ra re ri ro ru sa se si ta te ti to va ve vi za zo"
ENDS = ("ban dal dan dera din dor fen kano lan len lia lim lino lix lor mar mel min mora nel nia nor nux ran ren ria "
        "rin ron tan tana tel tia tis tor van vel ven vero via vix zan zen zia")
# What the syllables can form and somebody owns or wears already, and fragments that one of the two languages would
# rather not see in a shop window.
NOT_A_BRAND = {
    "allen", "ardor", "bavaria", "caldor", "calor", "camelia", "caron", "catan", "dolmar", "elvia", "fator", "fennel",
    "karen", "kazan", "malaria", "manor", "matan", "matel", "milan", "mitel", "nadal", "navel", "ratan", "raven",
    "saran", "sonor", "sotana", "titan", "tizen", "valor", "vitel", "zamora",
}
NOT_IN_A_BRAND = re.compile("anal|anus|cag|cona|fag|mamil|nazi|neg|rab|rola|sata|tara|teta|tit|vadi")

STORY = (  # when, who, what, turn: nonsense in the tone of a shop that would rather tell than describe
    "One winter|That spring|Early in May|The next morning|After the harvest|On a Sunday|Late one night|Years later",
    "the old baker|her youngest sister|a sailor from the coast|the quiet teacher|my grandmother|the boy next door",
    "carried it down to the harbour|left it beside the stove|wrapped it in paper and string|showed it to the bees"
    "|took it on the slow train home|put it back on the shelf",
    "and nobody spoke for a while|while the snow fell on the roofs|and the whole street laughed|so the music began"
    "|and the dog slept through it all|as if there were all the time in the world",
)
# fmt: on

# ----------------------------------------------------------------------------------------------------- clean products


class Product(NamedTuple):
    """What is known of one product before any dirt: `facts` stand word for word in `content`, and in `title` or, where
    the shop has some, in `columns`."""

    uid: str
    language: str
    kind: str
    title: str
    content: str
    facts: dict[str, str]
    columns: dict[str, str]


def brand_names(rng: random.Random) -> Iterator[str]:
    """Yield invented brands of two or three syllables, each once."""
    seen = set(NOT_A_BRAND)
    while True:
        start, end = rng.choice(STARTS.split()), rng.choice(ENDS.split())
        brand = start + (rng.choice(MIDDLES.split()) if rng.random() < 0.7 else "") + end
        if brand.lower() not in seen and not NOT_IN_A_BRAND.search(brand.lower()):
            seen.add(brand.lower())
            yield brand


def with_article(phrase: str) -> str:
    """Put a or an before a phrase; no word in the lists starts with a vowel letter that sounds like a consonant."""
    return ("an " if phrase[0].lower() in "aeiou" else "a ") + phrase


def title_case(phrase: str) -> str:
    """Capitalise as shops do, leaving small words, and T-shirt's second half, alone."""
    small = {"of", "de", "com", "para"}
    return " ".join(word if word in small else word[0].upper() + word[1:] for word in phrase.split())


def agree(colour: str, gender: str, plural: bool) -> str:
    """Inflect a Portuguese colour: preto -> pretas, azul -> azuis, rosa -> rosa."""
    if colour.endswith("o") and colour not in {"vinho", "azul-marinho"}:
        colour = colour[:-1] + ("a" if gender == "f" else "o")
        return colour + ("s" if plural else "")
    return AGREEING.get(colour, colour) if plural else colour


def choose_facts(kind: Kind, brand: str, rng: random.Random) -> dict[str, str]:
    """Choose the 1 to 5 facts that the title will carry, in their final form; without a `brand`, fewer of them."""
    optional = ["material", "size"] + ["colour"] * kind.coloured + ["quantity"] * bool(kind.quantities)
    wanted = rng.choice((1, 2, 2, 2, 2, 3, 3) if brand else (0, 1, 1, 1, 2, 2, 3))
    chosen = set(rng.sample(optional, min(len(optional), wanted)))
    plural = "quantity" in chosen
    facts = {"kind": kind.many if plural else kind.one} | ({"brand": brand} if brand else {})
    if "colour" in chosen:
        colour = rng.choice((PORTUGUESE_COLOURS if kind.gender else ENGLISH_COLOURS).split("|"))
        facts["colour"] = agree(colour, kind.gender, plural) if kind.gender else colour
    if "material" in chosen:
        takes_it = [m for m in kind.materials.split("|") if "colour" not in chosen or m not in UNCOLOURED]
        facts["material"] = rng.choice(takes_it)
    if "size" in chosen:
        facts["size"] = rng.choice(kind.sizes.split("|"))
    if "quantity" in chosen:
        facts["quantity"] = rng.choice(kind.quantities.split("|"))
    return facts


def in_words(facts: dict[str, str], language: str) -> str:
    """The kind with its colour and material: blue ceramic mug, caneca azul de cerâmica."""
    colour, material = facts.get("colour", ""), facts.get("material", "")
    if language == "en":
        return " ".join(word for word in (colour, material, facts["kind"]) if word)
    return " ".join(word for word in (facts["kind"], colour, material and f"de {material}") if word)


def write_title(facts: dict[str, str], language: str, rng: random.Random) -> str:
    """Set the facts in one of the shop's title patterns."""
    noun = in_words(facts, language)
    look = [facts.get("colour", ""), facts.get("material", "")]
    rest = [facts.get("size", ""), facts.get("quantity", "")]
    fields = {name: title_case(value) for name, value in facts.items()}
    # A unit keeps its small letters (350 ml); a size in letters is capitalised like any word (Size M).
    fields["size"] = size = rest[0] if rest[0][:1].isdigit() else title_case(rest[0])
    fields["noun"], fields["look"] = title_case(noun), ", ".join(title_case(value) for value in look if value)
    fields["rest"] = ", ".join(value for value in (size, title_case(rest[1])) if value)
    in_front = SET_TITLES[language] if "brand" in facts else "{quantity} {noun}, {size}"
    others = TITLES[language] if "brand" in facts else PLAIN_TITLES
    pattern = in_front if rest[1] and rng.random() < 0.3 else rng.choice(others.split("|"))
    title = pattern.format(**fields)
    title = re.sub(r"[,\s-]+$", "", title.replace("()", "").replace("- ,", "-"))
    if rng.random() < AS_QUESTION:
        title = rng.choice(QUESTION_TITLES[language].split("|")).format(title=title)
    return title.lower() if rng.random() < IN_SMALL_LETTERS else title


def write_content(kind: Kind, facts: dict[str, str], language: str, rng: random.Random) -> str:
    """Write three sentences that say every fact: what it is, how big or how good, and how to keep it."""
    noun = in_words(facts, language)
    plural, quantity = "quantity" in facts, facts.get("quantity", "")
    ending = {"m": "o", "f": "a", "": ""}[kind.gender]
    subject = {"en": ("It", "Each one"), "pt": ("Ela", "Cada uma") if ending == "a" else ("Ele", "Cada um")}[language]
    words = {
        "noun": noun,
        "a_noun": with_article(noun),
        "brand": facts.get("brand", ""),
        "size": facts.get("size", ""),
        "quantity": quantity,
        "a_quantity": with_article(quantity or noun),
        "use": rng.choice(kind.uses.split("|")),
        "It": subject[plural],
        "o": ending + "s" * plural,
        "O": ending.upper() + "s" * plural,
        "um": "uma" if ending == "a" else "um",
        "e": {"a": "as", "o": "es"}.get(ending, "") if plural else {"a": "a", "o": "e"}.get(ending, ""),
    }

    def pick(alternatives: str) -> str:
        return rng.choice(alternatives.split("|")).format(**words)

    in_opening = plural and rng.random() < 0.5
    openings = (OPENINGS if "brand" in facts else PLAIN_OPENINGS)[language]
    sentences = [pick(openings["set" if in_opening else "many" if plural else "one"])]
    if "size" in facts:
        tail = pick(kind.tails)
        comma = "" if tail.startswith(("and ", "e ")) else ","
        sentences.append(f"{pick(MEASURES[language][kind.measure])}{comma} {tail}.")
    else:
        sentences.append(f"{words['It']} {pick(kind.features)}.")
    if plural and not in_opening:
        sentences.append(pick(QUANTITIES[language]))
    elif "material" in facts and rng.random() < 0.75:
        sentences.append(pick(CARE[facts["material"]]))
    else:
        sentences.append(pick(kind.closings))
    return " ".join(sentences)


def make_product(uid: str, brand: str, rng: random.Random) -> Product:
    """Invent one product: three in five are English, the others Brazilian Portuguese."""
    language = "en" if rng.random() < 0.6 else "pt"
    kind = rng.choice(ENGLISH_KINDS if language == "en" else PORTUGUESE_KINDS)
    facts = choose_facts(kind, brand, rng)
    columns = {}
    in_title = facts
    if rng.random() < IN_COLUMNS:
        columns = {name: value for name, value in facts.items() if name != "kind"}
        in_title = {name: value for name, value in facts.items() if name == "kind" or rng.random() < 0.5}
    title = write_title(in_title, language, rng)
    content = write_content(kind, facts, language, rng)
    return Product(uid, language, kind.one, title, content, facts, columns)


def make_uids(number: int, rng: random.Random) -> list[str]:
    """Make distinct identifiers in the form of an ASIN; no real one starts with VT."""
    uids: dict[str, None] = {}
    while len(uids) < number:
        uids["VT" + "".join(rng.choices(string.ascii_uppercase + string.digits, k=8))] = None
    return list(uids)


def make_products(uids: list[str], rng: random.Random) -> list[Product]:
    """Of the products with a brand, about 70 % have one of their own; the others share 40 brands."""
    names = brand_names(rng)
    recurring = [next(names) for _ in range(40)]
    products: list[Product] = []
    seen: set[tuple] = set()  # what is known must not have two right answers, and an offer is there once
    while len(products) < len(uids):
        brand = rng.choice(recurring) if rng.random() < 0.3 else next(names)
        brand = "" if rng.random() < WITHOUT_BRAND else brand
        product = make_product(uids[len(products)], brand, rng)
        looks = {(product.title, *product.columns.items()), (product.title, product.content)}
        if not looks & seen:
            seen |= looks
            products.append(product)
    return products


# --------------------------------------------------------------------------------------------------------------- dirt
# Each function takes a clean title and content and returns them with one fault, or unchanged where it does not apply.

Text = tuple[str, str]  # title, content


def html_tags(title: str, content: str, rng: random.Random) -> Text:
    """The seller pasted the description from a web page, tags and all."""
    sentences = re.split(r"(?<=[.?]) ", content)
    first, rest = sentences[0], " ".join(sentences[1:])
    listed = "<ul>" + "".join(f"<li>{sentence}</li>" for sentence in sentences) + "</ul>"
    paragraphs = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    return title, rng.choice((listed, paragraphs, "<br />".join(sentences), f"<p><b>{first}</b><br />{rest}</p>"))


def entities(title: str, content: str, rng: random.Random) -> Text:
    """The page was scraped as source text, so its character references are still there."""

    def escape(text: str) -> str:
        named = {c: f"&{html.entities.codepoint2name[ord(c)]};" for c in text if c in '&"' or not c.isascii()}
        return text.replace(" half ", " ½ ").translate(str.maketrans(named | {"'": "&#8217;", "½": "&frac12;"}))

    return escape(title), escape(content)


def double_escaped(title: str, content: str, rng: random.Random) -> Text:
    """Two programs in a row escaped the text, so that one unescaping still leaves &amp; and &eacute;."""
    title, content = entities(title, content, rng)
    return title.replace("&", "&amp;"), content.replace("&", "&amp;")


def mojibake(title: str, content: str, rng: random.Random) -> Text:
    """UTF-8 was read as Windows-1252: "algodão" became "algodÃ£o"."""
    try:
        return title.encode("utf-8").decode("cp1252"), content.encode("utf-8").decode("cp1252")
    except UnicodeDecodeError:  # five bytes have no meaning in cp1252
        return title, content


def over_long(title: str, content: str, rng: random.Random) -> Text:
    """The seller pasted a whole blog post after the description."""
    pasted = ("{}, {} {}, {}.".format(*(rng.choice(part.split("|")) for part in STORY)) for _ in range(28))
    return title, " ".join([content, *pasted])


def empty_content(title: str, content: str, rng: random.Random) -> Text:
    """Nobody wrote a description: about half of the real file."""
    return title, ""


def content_is_title(title: str, content: str, rng: random.Random) -> Text:
    """The form wanted a description, so the title was pasted twice."""
    return title, title


def markup_title(title: str, content: str, rng: random.Random) -> Text:
    """The scraper took a piece of the page for the title."""
    return rng.choice(('<span class="a-size-medium a-color-secondary"', '<div id="titleSection"')), content


REPAIRABLE = ((html_tags, 0.015), (entities, 0.015), (double_escaped, 0.007), (mojibake, 0.006), (over_long, 0.002))
HOPELESS = ((empty_content, 0.015), (content_is_title, 0.006), (markup_title, 0.003))
DUPLICATES = 0.006


def soil(products: list[Product], rng: random.Random) -> tuple[dict[str, Text], set[str]]:
    """Return the faulty text of the products that get a fault, and the uids of those that are lost by it."""
    dirty: dict[str, Text] = {}
    lost: set[str] = set()
    candidates = iter(rng.sample(products, len(products)))
    for fault, share in REPAIRABLE + HOPELESS:
        for _ in range(max(1, round(share * len(products)))):
            product = next(candidates)
            while (text := fault(product.title, product.content, rng)) == (product.title, product.content):
                product = next(candidates)
            dirty[product.uid] = text
            if (fault, share) in HOPELESS:
                lost.add(product.uid)
    return dirty, lost


# -------------------------------------------------------------------------------------------------------------- files


def make_catalogue(number: int, seed: int, language: str | None = None) -> tuple[list[str], dict[str, dict]]:
    """Return the lines of the catalogue, `number` of them, and the facts of its usable products by uid.

    Of one `language`: those among the `number` products that are in it, the same ones as in the whole catalogue.
    """
    rng = random.Random(seed)
    copies = max(1, round(DUPLICATES * number))
    uids = make_uids(number, rng)
    products = make_products(uids[copies + 1 :], rng)
    dirty, lost = soil(products, rng)
    products = [p for p in products if language in (None, p.language)]

    labels: dict[str, list[int]] = {}  # kind -> the indices of its products, the label space of target_ind
    for index, product in enumerate(products):
        labels.setdefault(product.kind, []).append(index)
    records = []
    for index, product in enumerate(products):
        title, content = dirty.get(product.uid, (product.title, product.content))
        same_kind = labels[product.kind]
        related = sorted(set(rng.sample(same_kind, min(len(same_kind), rng.randint(2, 5)))) - {index})
        texts = {"uid": product.uid, "title": title, "content": content, **product.columns}
        records.append(texts | {"target_ind": related, "target_rel": [1.0] * len(related)})
    facts = {p.uid: {"title": p.title, "facts": p.facts} for p in products if p.uid not in lost}

    # The same offer was listed again under a new number. The copy stands after the original, which is the one to keep.
    clean = [record for record in records if record["uid"] not in dirty]
    for uid, record in zip(uids[1 : copies + 1], rng.sample(clean, copies), strict=True):
        records.insert(rng.randint(records.index(record) + 1, len(records)), record | {"uid": uid})
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    # The download broke off and was appended to: one line is half an object.
    middle = len(lines) // 2
    lines.insert(middle, lines[middle].replace(records[middle]["uid"], uids[0])[: len(lines[middle]) // 2])
    return lines, facts


def write_gzip(path: Path, text: str) -> None:
    """Write text with no name and no time in the header, so that equal text gives equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
        packed.write(text.encode("utf-8"))


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--products", type=int, default=16_000, help="lines of the catalogue, dirt included (16,000)")
    parser.add_argument("--seed", type=int, default=42, help="another seed, another catalogue (42)")
    parser.add_argument("--language", choices=("en", "pt"), help="only the products in it; default: all")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).resolve().parent, help="(beside this script)")
    args = parser.parse_args()
    if args.products < 200:
        parser.error("fewer than 200 products leave no room for one of each fault; try --products 200")

    lines, facts = make_catalogue(args.products, args.seed, args.language)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_gzip(args.output_dir / "catalogue.json.gz", "\n".join(lines) + "\n")
    write_gzip(args.output_dir / "facts.json.gz", json.dumps(facts, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(lines)} lines, {len(facts)} usable products -> {args.output_dir}")


if __name__ == "__main__":
    main()
